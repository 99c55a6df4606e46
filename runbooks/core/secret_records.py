"""Records that may contain a secret."""

from typing import ClassVar

from msgspec import Struct


class Discreet(Struct, frozen=True):
    """A record whose text form leaves out the fields in `HIDDEN`."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name not in self.HIDDEN]
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        return f"{type(self).__name__}({', '.join(shown)})"
