"""Turn what goes wrong with an optional package into an error that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from ark_dist.core.errors import ConfigError


def require(package: str, purpose: str) -> None:
    """Import an optional package of the extra `demo`; raise ConfigError where it is not there."""
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {package}, which can't be imported ({error}); "
            "pip install 'ark_dist[demo]'"
        ) from error


@contextmanager
def tokenizers_errors() -> Iterator[None]:
    """Make a ValueError of all that the package tokenizers raises, panics of its Rust included."""
    try:
        yield
    except Exception as error:  # it raises nothing more exact
        raise ValueError(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # no module has the class
            raise
        raise ValueError(f"the package tokenizers gave up: {error}") from error
