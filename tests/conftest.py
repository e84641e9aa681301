"""What many tests share; only the fixtures that need torch and transformers import them."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from effllava_optuna.policy import Component, Kind, ModelStructure, Ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Batch

pytest_plugins = ["tests.fixed_latency", "tests.study_fixtures"]

# Set before huggingface_hub is imported: a wrong path shall fail, not ask the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before `datasets` is: what it makes of small files goes with the tests.
if "HF_DATASETS_CACHE" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="effllava-datasets-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# Before torch is: on matrices this small, threads mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples everywhere; a slow machine is no failure.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


MOST_PROCESSES = 4  # each imports torch


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of test processes: one for each processor; none beside pytest for one."""
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 0 if processors < 2 else min(processors, MOST_PROCESSES)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option to write the tables of the docs that tests generate."""
    parser.addoption("--write-tables", action="store_true", help="write the tables of docs/")


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a PostgreSQL server; return its URL up to the name of a database."""
    executables = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not executables:
        pytest.skip("PostgreSQL is not installed")
    # The server refuses to run as root.
    root = os.geteuid() == 0
    who: dict[str, Any] = {"user": "postgres", "group": "postgres"} if root else {}
    place = Path(tempfile.mkdtemp(prefix="effllava-postgresql-"))
    if root:
        shutil.chown(place, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(*words: str) -> None:
        subprocess.run(
            [str(executables[-1]), "-D", str(place / "data"), *words],
            check=True, stdout=subprocess.DEVNULL, cwd=place, **who,
        )  # fmt: skip

    control("initdb", "-o", "--auth=trust --username=tests")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {place} -c fsync=off"
    control("-w", "-l", str(place / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://tests@127.0.0.1:{port}"
    finally:
        control("-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(
    params=["sqlite", "journal", pytest.param("postgresql", marks=pytest.mark.servers)]
)
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    if request.param == "journal":
        return f"journal:///{tmp_path / 'a.log'}"
    return new_database(request.getfixturevalue("postgresql"))


def new_database(server: str) -> str:
    """Create an empty database on a server."""
    import sqlalchemy

    name = f"d{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    engine.dispose()
    return f"{server}/{name}"


@pytest.fixture(scope="session")
def structure() -> ModelStructure:
    """Three blocks of an imaginary decoder; one component has a floor."""
    return ModelStructure(
        tuple(
            component
            for layer in range(3)
            for component in (
                Component("language", layer, Kind.ATTN, 4, 100),
                Component("language", layer, Kind.MLP, 32, 10, floor=8 if layer == 1 else 1),
            )
        )
    )


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small datasets in the schemas of four benchmarks. Copy them before changing them."""
    place = tmp_path_factory.mktemp("drawn")
    script("draw_tasks").draw(place)
    return place


def script(name: str) -> Any:
    """Import a script of benchmarks/, where scripts import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        return importlib.import_module(name)


def page_of(title: str) -> str:
    """Return what the published page of a benchmark has between its heading and its last line."""
    text: str = script("_pages").page_of(title).read_text(encoding="utf-8")
    head, _, body = text.partition("\n\n")
    assert head == f"# {title}"
    return body.rpartition("\n\n")[0]


def rows(text: str) -> list[list[str]]:
    """Read the cells of the tables that a script printed, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    after = [index for index, line in enumerate(lines) if set(line) <= set("|-")]
    heads = {index - 1 for index in after}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for index, line in enumerate(lines)
        if index not in heads and index not in after
    ]


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Small forms of benchmarks do not change the published results."""
    folder = Path(__file__).parents[1] / "benchmarks"

    def published() -> dict[Path, bytes]:
        places = (*folder.glob("results/**/*"), *folder.glob("*.md"), *folder.glob("tables/*"))
        return {place: place.read_bytes() for place in places if place.is_file()}

    before = published()
    yield
    after = published()
    assert after == before


@pytest.fixture(scope="session")
def processor() -> Any:
    """A LLaVA processor for pictures of 32 x 32 pixels; one token a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from effllava_optuna.tasks.data.digits import CORNERS, LINES, TARGETS

    text = " ".join([*CORNERS, *LINES, *TARGETS])
    words = dict.fromkeys(
        "<pad> <unk> <s> </s> <image> user assistant : ? what digit is at the sum of how many "
        f"digits are even odd largest smallest {text}".split()
    )
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": 32, "width": 32}, do_center_crop=False
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
            padding_side="left",
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


@pytest.fixture(scope="session")
def make_llava(processor: Any) -> Callable[..., LoadedModel]:
    """Return a function that builds a CLIP + decoder LLaVA of three blocks.

    Six query heads in three groups, and together wider than the hidden size, so that no two
    sizes of a weight are equal by chance.
    """
    import torch
    import transformers

    from effllava_optuna.surgery import LoadedModel

    def make(text_config: str = "LlamaConfig", **text: Any) -> LoadedModel:
        tokenizer = processor.tokenizer
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 36,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                projection_dim=16,
            ),
            text_config=getattr(transformers, text_config)(**(sizes | text)),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=16,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
        model = transformers.LlavaForConditionalGeneration(config)
        # The stock initialisation (std 0.02) makes logits nearly constant: any two would agree.
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 0.5 if "embed_tokens" in name else 0.15
            torch.nn.init.normal_(weight, centre, spread, generator=generator)
        return LoadedModel.of(model, processor, f"tiny {text_config}")

    return make


@pytest.fixture(scope="session")
def checkpoint(
    make_llava: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory with a tiny LLaVA as transformers writes it. Copy it before changing it."""
    place = tmp_path_factory.mktemp("tiny-llava")
    loaded = make_llava()
    loaded.model.save_pretrained(place)
    loaded.processor.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> LoadedModel:
    """A tiny random LLaVA, loaded from disk. A test that changes it restores it."""
    import effllava_optuna

    return effllava_optuna.load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def ranking(tiny: LoadedModel) -> Ranking:
    """A random order of the units of `tiny`."""
    rng = np.random.default_rng(0)
    scores = {component.id: rng.random(component.width) for component in tiny.structure.components}
    return Ranking.from_scores(tiny.structure, "random", scores)


@pytest.fixture(scope="session")
def batch(processor: Any) -> Batch:
    """Six questions of different lengths, padded on the left."""
    from effllava_optuna.tasks import Digits, Split, encode_with_answers

    return encode_with_answers(processor, Digits().samples(Split.PROXY)[:6])[0]


@pytest.fixture(scope="session")
def singles(processor: Any) -> list[Batch]:
    """The samples of `batch`, one to a batch: nothing is padded."""
    from effllava_optuna.tasks import Digits, Split, encode_with_answers

    return [encode_with_answers(processor, [one])[0] for one in Digits().samples(Split.PROXY)[:6]]
