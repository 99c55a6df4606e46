"""Records that may hold a secret."""

from typing import ClassVar

from msgspec import Struct


class Discreet(Struct, frozen=True):
    """A record that leaves the fields in `HIDDEN` out where it is shown."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
            if name not in self.HIDDEN
        )
        return f"{type(self).__name__}({', '.join(shown)})"
