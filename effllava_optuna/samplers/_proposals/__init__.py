"""What a generation proposes, and how: pure functions of what was measured before it."""
