"""As declared: which calls of one kind changed the balance as declared, and which did not.

A manager may keep several balances and show one of them: a payment in another currency then leaves that one alone.  The
declaration cannot say so, but the words of the calls can: those that never went with a declared change are remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# An argument with more values than these is no choice among a few.
_VALUES = 8
# How many calls in a row have to agree after one that differs from them in no word.
_TRUSTED_AGAIN = 3
_NEVER = 1 << 30
# Behind the name of an argument that is an amount: whether it is not 0.
IS_ANY = " != 0"

Words = Mapping[str, str | int]


@dataclass(slots=True)
class AsDeclared:
    """What was seen of one kind of call.  `words`: the texts and whole numbers that a call gave, by argument."""

    # Whether any call did what is declared; None before one was seen.
    seen: bool | None = None
    # argument -> its values in calls that did as declared, and its values in none but such as did not.
    fitting: dict[str, list[str | int]] = field(default_factory=dict)
    strange: dict[str, list[str | int]] = field(default_factory=dict)
    # How many calls have to agree before such calls are trusted again.
    doubted: int = 0

    def of(self, words: Words) -> bool | None:
        """Whether a call with these words does as declared; None where that is not known yet."""
        marked = [name for name in words if self.strange.get(name)]
        if self.doubted or any(words[name] in self.strange[name] for name in marked):
            return False
        few = [name for name in marked if self._few(name)]
        if few and not any(words[name] in self.fitting.get(name, ()) for name in few):
            return False
        unseen = any(
            name.endswith(IS_ANY) and self._knows(name) and not self._known(name, words[name]) for name in words
        )
        return None if unseen else self.seen

    def is_of_another(self, words: Words) -> bool:
        """Whether a call with these words changes another balance, or may, since it was not seen yet."""
        return self.seen is not None and (self.of(words) is False or self.is_new(words))

    @property
    def is_strange(self) -> bool:
        """Whether some such calls are not trusted to do as declared."""
        return self.seen is False or self.doubted > 0 or any(self.strange.values())

    def is_new(self, words: Words) -> bool:
        """Whether an argument with few values has one that was never seen."""
        return any(self._few(name) and not self._known(name, value) for name, value in words.items())

    def observe(self, words: Words, *, fits: bool, lasting: bool = False) -> None:
        """Take in what one call did.  `lasting`: a call that did not fit is never forgotten."""
        if fits:
            self.seen, self.doubted = True, max(0, self.doubted - 1) if self.doubted < _NEVER else _NEVER
            explained = any(self.strange.values())
            for name, value in words.items():
                if value in self.strange.get(name, ()):
                    self.strange[name].remove(value)
                if self._few(name) and value not in self.fitting.get(name, ()):
                    self.fitting.setdefault(name, []).append(value)
            if explained and not any(self.strange.values()):
                # No word is left by which those that differed can be told: a fee that is rounded away.
                self.doubted = max(self.doubted, _TRUSTED_AGAIN)
            return
        self.seen = bool(self.seen)
        telling = {name: value for name, value in words.items() if self._few(name) or self._known(name, value)}
        telling = {name: value for name, value in telling.items() if value not in self.fitting.get(name, ())}
        for name, value in telling.items():
            if value not in self.strange.setdefault(name, []):
                self.strange[name].append(value)
        if lasting or not telling:
            self.doubted = _NEVER if lasting else _TRUSTED_AGAIN

    def _few(self, name: str) -> bool:
        return len(self.fitting.get(name, ())) + len(self.strange.get(name, ())) < _VALUES

    def _knows(self, name: str) -> bool:
        return bool(self.fitting.get(name) or self.strange.get(name))

    def _known(self, name: str, value: str | int) -> bool:
        return value in self.fitting.get(name, ()) or value in self.strange.get(name, ())

    def dump(self) -> list[Any]:
        """Its state, to be stored."""
        return [self.seen, self.fitting, self.strange, self.doubted]

    @classmethod
    def load(cls, state: Any) -> AsDeclared:
        """The inverse of `dump`; of an earlier version there is `seen` alone."""
        return cls(*state) if isinstance(state, list) else cls(state)
