"""The model `vila_kit` in the real lmms-eval: registry, evaluator and a small task. Run by `nox -s lmms`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from tests.programs import run_program

import vila_core
from vila_core.errors import ConfigError, GenerationError, MediaError, VilaWarning
from vila_eval.lmms_eval_bridge.model import VilaKit, as_conversation, generation_settings

MEDIA = Path(__file__).parents[2] / "examples" / "media"
PICTURES = [
    case for case in json.loads((MEDIA / "questions.json").read_text()) if not case["media"][0].endswith(".mp4")
]
VIDEO = next(case for case in json.loads((MEDIA / "questions.json").read_text()) if case["media"][0].endswith(".mp4"))

FUNCTIONS = """
from PIL import Image

def visual(row):
    return [Image.open(path).convert("RGB") if path.endswith(".png") else path for path in row["media"]]

def text(row, lmms_eval_specific_kwargs=None):
    return row["text"]

def rounds(row, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    if round_idx is None:
        return row["text"]
    if round_idx == row["rounds"]:
        return None, None, True, previous_output, None
    return visual(row), f"{row['text']} {previous_output[-1]}", False, previous_output, None

def results(row, answers):
    answers = answers[0] if isinstance(answers[0], list) else answers
    return {"right": float(answers[0] == row["answer"]), "answers": {"answers": answers}}

def mean(values):
    return sum(values) / len(values)
"""

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_visual: !function functions.visual
doc_to_text: !function functions.{text}
doc_to_target: answer
process_results: !function functions.results
generation_kwargs:
  max_new_tokens: 32
  do_sample: false
metric_list:
  - metric: right
    aggregation: !function functions.mean
    higher_is_better: true
"""


SCRIPT = """
import json
from pathlib import Path
from test_bridge import evaluate

found = evaluate(Path.cwd())
if found is not None:  # only in the first process
    Path("found.json").write_text(json.dumps(found["results"]["drawn"]))
"""


def write_task(folder: Path, rows: list[dict[str, Any]], *, kind: str = "generate_until", text: str = "text") -> None:
    """Write the task "drawn" with `rows` in lmms-eval's format."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "drawn.yaml").write_text(TASK.format(name="drawn", data=folder / "rows.jsonl", kind=kind, text=text))


def evaluate(folder: Path, **arguments: Any) -> Any:
    """Run the task with lmms-eval's own evaluator, like `lmms-eval --model vila_kit --include_path …`."""
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        "vila_kit", model_args="device=cpu", tasks=["drawn"], task_manager=tasks, bootstrap_iters=0, **arguments
    )


def a_row(case: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**case, "media": [str(MEDIA / name) for name in case["media"]], **more}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_lmms_eval_finds_the_model() -> None:
    assert get_model("vila_kit") is VilaKit


def test_the_evaluator_gets_the_answers_of_vila_core(tmp_path: Path) -> None:
    write_task(tmp_path, [a_row(case) for case in PICTURES])
    found = evaluate(tmp_path, batch_size=3)
    model = vila_core.load(device="cpu")
    expected = [
        model.generate([*(vila_core.Image(MEDIA / name) for name in case["media"]), case["text"]]) for case in PICTURES
    ]
    assert [sample["filtered_resps"][0] for sample in found["samples"]["drawn"]] == expected
    assert expected == [case["answer"] for case in PICTURES]
    assert found["results"]["drawn"]["right,none"] == 1.0


def test_videos_are_given_by_path(tmp_path: Path) -> None:
    write_task(tmp_path, [a_row(VIDEO)])
    assert evaluate(tmp_path)["results"]["drawn"]["right,none"] == 1.0


def test_two_processes_share_the_rows(tmp_path: Path) -> None:
    write_task(tmp_path, [a_row(case) for case in PICTURES[:3]])
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[2]))),
    }
    done = run_program([sys.executable, *command], env=environment, cwd=tmp_path, seconds=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["right,none"] == 1.0


def test_rounds_see_the_earlier_answers(tmp_path: Path) -> None:
    rows = [a_row(case, rounds=number) for number, case in enumerate(PICTURES[:3], 1)]
    write_task(tmp_path, rows, kind="generate_until_multi_round", text="rounds")
    found = evaluate(tmp_path)
    model = vila_core.load(device="cpu")
    expected: list[list[str]] = []
    for case, row in zip(PICTURES, rows, strict=False):
        picture = vila_core.Image(MEDIA / case["media"][0])
        answers = [model.generate([picture, case["text"]], max_new_tokens=32)]
        for _ in range(1, row["rounds"]):
            answers.append(model.generate([picture, f"{case['text']} {answers[-1]}"], max_new_tokens=32))
        expected.append(answers)
    samples = sorted(found["samples"]["drawn"], key=lambda sample: sample["doc_id"])
    assert [sample["answers"]["answers"] for sample in samples] == expected
    assert [len(answers) for answers in expected] == [1, 2, 3]


def broken(folder: Path) -> str:
    """A file that lmms-eval passes on by its path, and that is no video."""
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return str(folder / "broken.mp4")


def test_a_sample_that_fails_costs_no_other(tmp_path: Path) -> None:
    rows = [a_row(case) for case in PICTURES[:3]]
    rows[1]["media"] = [broken(tmp_path)]
    write_task(tmp_path, rows)
    with pytest.warns(VilaWarning, match=r"Sample 1 of drawn failed and gets an empty answer: .*broken\.mp4"):
        found = evaluate(tmp_path, batch_size=3)
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["drawn"]]
    assert answers == [PICTURES[0]["answer"], "", PICTURES[2]["answer"]]


def test_a_task_of_which_every_sample_fails_ends_with_the_reason(tmp_path: Path) -> None:
    write_task(tmp_path, [{**a_row(PICTURES[0]), "media": [broken(tmp_path)]}])
    with pytest.warns(VilaWarning), pytest.raises(MediaError, match=r"broken\.mp4"):
        evaluate(tmp_path)


def test_likelihoods_are_rejected() -> None:
    model = VilaKit(device="cpu")
    with pytest.raises(GenerationError, match="computes no likelihoods"):
        model.loglikelihood([])


def test_generation_arguments_are_translated() -> None:
    assert generation_settings(
        {"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1, "until": ["\n\n"]}
    ) == {
        "max_new_tokens": 16,
        "temperature": 0,
        "stop": [],
    }
    assert generation_settings({"until": "ASSISTANT:"})["stop"] == ["ASSISTANT:"]
    assert generation_settings({"do_sample": False, "temperature": 1.0})["temperature"] == 0.0
    with pytest.raises(GenerationError, match="num_beams=3"):
        generation_settings({"num_beams": 3})
    with pytest.warns(UserWarning, match="skip_special_tokens"):
        generation_settings({"skip_special_tokens": False})


def test_unsupported_input_is_rejected() -> None:
    def ask(part: dict[str, Any]) -> None:
        as_conversation([{"role": "user", "content": [part]}])

    with pytest.raises(MediaError, match="asks about audio"):
        ask({"type": "audio", "url": "speech.wav"})
    with pytest.raises(MediaError, match="part of a video"):
        ask({"type": "video", "url": {"path": "long.mp4", "video_start": 3.0}})
    with pytest.raises(ConfigError, match="max_tiles='many'"):
        VilaKit(max_tiles="many")  # type: ignore[arg-type]
