"""Turn the messages of a chat into the text that a model was trained to continue.

The format is the model's own: a Jinja template beside its weights. It comes with a model that
nobody vouches for, so it runs in Jinja's sandbox: it reaches nothing but the messages, though it
may take long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ark_dist.core.errors import CheckpointError
from ark_dist.optional import require

Message: TypeAlias = Mapping[str, str]

MAX_TEMPLATE_CHARS = 1 << 20
# What a template raises that is wrong, beside Jinja's own errors.
FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's chat template.

    Attributes:
        text: the template, in Jinja's language.
        tokens: the special tokens that it may name, such as "bos_token".
        place: where it comes from, for messages.
    """

    text: str
    tokens: Mapping[str, str]
    place: str

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the text of a chat, up to where the model is to answer if asked for.

        Each message has a "role" ("system", "user" or "assistant") and a "content".

        Raises:
            ConfigError: the package jinja2 is not installed.
            ValueError: for messages that are none, or that the template refuses.
            CheckpointError: for a template that can't be run.
        """
        _check(messages)
        require("jinja2", "a chat template")
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # As in transformers, for which templates are written.
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        try:
            return sandbox.from_string(self.text).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                raise_exception=_refuse,
                **self.tokens,
            )
        except _RefusedError as error:
            raise ValueError(f"the chat template of {self.place} refuses: {error}") from None
        except (TemplateError, *FAILURES) as error:
            raise CheckpointError(f"{self.place}: its chat template fails: {error}") from error


class _RefusedError(Exception):
    """A template does not want these messages."""


def _refuse(message: object) -> None:
    raise _RefusedError(message)


def _check(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        is_mapping = isinstance(message, Mapping)
        if not is_mapping or not all(type(message.get(key)) is str for key in ("role", "content")):
            raise ValueError(
                f"message {number} is {message!r:.80}; it must be a dict with the texts "
                '"role" and "content"'
            )
    if not messages:
        raise ValueError("a chat has no messages; give at least one")
