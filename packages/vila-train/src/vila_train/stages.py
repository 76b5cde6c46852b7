"""The model that a stage starts from: that of an earlier run, or one that the user names."""

from pathlib import Path

from vila_core.checkpoint.json_files import read_json
from vila_core.errors import CheckpointError, ConfigError
from vila_train.config import TrainConfig
from vila_train.run_folder import read_config

MODEL, RUN = "model", "run.yaml"
"""Of a run's folder: the trained model, which is written last, and the configuration."""
TINY_MODELS, TINY_RUN, TINY_SCORES = ("vila-tiny", "vila-tiny-u"), "run.json", "scores.json"
"""The same of a run of a recipe with one of these names; its scores are written last."""


def trained_model(run: Path) -> Path:
    """Return the model that a complete run has written.

    Raises:
        ConfigError: the folder is not that of a run, its settings are damaged, or the run is not complete.
    """
    if not run.is_dir():
        raise ConfigError(f"--stage-from: there is no folder '{run}'. Give the --out folder of an earlier run.")
    if (run / RUN).is_file():
        _require_settings(run)
        model, is_complete = run / MODEL, (run / MODEL / "config.json").is_file()
    elif (run / TINY_RUN).is_file():
        _require_tiny_settings(run)
        model = next((run / name for name in TINY_MODELS if (run / name).is_dir()), run / TINY_MODELS[0])
        is_complete = (run / TINY_SCORES).is_file()
    elif (run / "config.json").is_file():
        raise ConfigError(f"--stage-from: '{run}' is a model, not the folder of a run. Use --model {run}")
    else:
        raise ConfigError(
            f"--stage-from: '{run}' is not the folder of a run: it has no {RUN}. Give --out of an earlier run."
        )
    if not is_complete:
        raise ConfigError(
            f"--stage-from: the run in '{run}' is not complete. Run it to its end with the same command, or write its "
            f"newest checkpoint as a model with `vila-train export {run} MODEL` and use --model MODEL."
        )
    return model


def _require_settings(run: Path) -> None:
    try:
        read_config(run)
    except ConfigError as error:
        raise _damaged(run, str(error), MODEL) from None


def _require_tiny_settings(run: Path) -> None:
    try:
        settings = read_json(run / TINY_RUN)
    except CheckpointError as error:
        raise _damaged(run, str(error), TINY_MODELS[0]) from None
    if not isinstance(settings.get("stages"), list):
        raise _damaged(
            run, f"'{run / TINY_RUN}' does not hold the settings of a run: it has no stages.", TINY_MODELS[0]
        )


def _damaged(run: Path, problem: str, model: str) -> ConfigError:
    return ConfigError(f"--stage-from: {problem} If you know which model '{run}' holds, use --model {run / model}")


def start_from(config: TrainConfig, model: str | None = None, run: Path | None = None) -> TrainConfig:
    """Return `config` with the model that it starts from.

    Args:
        config: of a stage.
        model: folder or hub id. For a stage that builds a new model, its language model.
        run: folder of an earlier stage, whose trained model is taken.

    Raises:
        ConfigError: both or neither are given where one is needed, or the earlier stage is not complete.
    """
    if model is not None and run is not None:
        raise ConfigError("Got both --model and --stage-from. Give one: --stage-from takes the model of a run.")
    if model is not None and not model.strip():
        raise ConfigError("--model is empty. Name a folder or a hub id, or leave it out.")
    if run is not None:
        update = {"path": str(trained_model(run)), "new": None}
    elif model is not None and config.model.new is not None:
        update = {"new": config.model.new.model_copy(update={"language_model": model})}
    elif model is not None:
        update = {"path": model}
    elif config.model.path is None and config.model.new is None:
        raise ConfigError(
            f"'{config.name}' starts from a trained model: name it with --model MODEL, or --stage-from RUN for the "
            "result of an earlier stage."
        )
    else:
        update = {}
    return config.model_copy(update={"model": config.model.model_copy(update=update)})
