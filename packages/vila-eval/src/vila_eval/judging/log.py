"""One task's exchanges with judges: `judge.jsonl`, appended during a run and looked up by later runs."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vila_eval.errors import ResultsError
from vila_eval.records.append_only import append_lines, open_to_append
from vila_eval.records.schema import JudgeRecord
from vila_eval.records.storage import encode, read_records

Key = tuple[str, int, str, str]


@dataclass
class Usage:
    """Totals of the exchanges with one model."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    served_models: set[str] = field(default_factory=set[str])


class JudgeLog:
    """All exchanges. Use it in a `with` block; any thread may append.

    The last reply to a request counts: earlier ones had no verdict, or the judge would not have been asked again.

    Raises:
        ResultsError: the file is damaged, or cannot be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._replies: dict[Key, str] = {}
        self._usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._lock = threading.Lock()
        for record in read_records(JudgeRecord, path):
            self._take(record)
        self._file: BinaryIO | None = None

    def __enter__(self) -> JudgeLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def reply(self, sample_id: str, request: int, model: str, messages: Sequence[Mapping[str, object]]) -> str | None:
        """Return the model's reply to these messages; None if it was not asked or did not reply."""
        return self._replies.get(_key(sample_id, request, model, messages))

    def usage(self, model: str) -> Usage:
        """Return the totals of the exchanges with a model."""
        return self._usage[model]

    def append(self, record: JudgeRecord) -> None:
        """Append an exchange; it is on disk when this returns."""
        with self._lock:
            try:
                if self._file is None:
                    self._file = open_to_append(self._path)
                append_lines(self._file, f"{encode(record)}\n")
            except OSError as error:
                raise ResultsError(
                    f"The judge's reply cannot be written to '{self._path}': {error.strerror}."
                ) from None
            self._take(record)

    def _take(self, record: JudgeRecord) -> None:
        usage = self._usage[record.model]
        usage.requests += 1
        usage.prompt_tokens += record.prompt_tokens
        usage.completion_tokens += record.completion_tokens
        if record.served_model is not None:
            usage.served_models.add(record.served_model)
        if record.reply is not None:
            self._replies[_key(record.id, record.request, record.model, record.messages)] = record.reply


def _key(sample_id: str, request: int, model: str, messages: Sequence[Mapping[str, object]]) -> Key:
    return (
        sample_id,
        request,
        model,
        json.dumps([dict(message) for message in messages], sort_keys=True, ensure_ascii=False),
    )
