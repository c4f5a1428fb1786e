"""Say which package is missing, and how to get it, where one that is optional is needed."""

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
