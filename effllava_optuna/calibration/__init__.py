"""What a study measures and publishes once, before trial 0."""
