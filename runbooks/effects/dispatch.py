"""The handler of each effect, and the fragments of several effects together.

The unions are closed: mypy reports an effect without a handler.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, assert_never

from runbooks.core.effects import (
    Change,
    ControlOther,
    ControlService,
    Effect,
    EnableService,
    EndProcesses,
    LinkUnit,
    LostContents,
    RecallMessages,
    ReloadUnits,
    ResizePool,
    RestoreMessages,
    RestoreSelected,
    Reverse,
    RevokeTasks,
    RunTask,
    SendAgain,
    SetEnvironment,
    SetRateLimit,
    ShutDownNode,
    StartByHand,
    SwitchConsumer,
    TakeMessages,
    TakeUnacked,
    WriteFile,
)
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState
from runbooks.effects.base import Handler, InBroker, OnHost, Reloading, Way
from runbooks.effects.environment import SetEnvironmentHandler
from runbooks.effects.files import LostContentsHandler, WriteFileHandler, judge_together
from runbooks.effects.messages import (
    RecallMessagesHandler,
    RestoreMessagesHandler,
    RestoreSelectedHandler,
    SendAgainHandler,
    TakeMessagesHandler,
    TakeUnackedHandler,
)
from runbooks.effects.nodes import (
    ResizePoolHandler,
    RevokeTasksHandler,
    SetRateLimitHandler,
    ShutDownNodeHandler,
    SwitchConsumerHandler,
)
from runbooks.effects.services import (
    ControlServiceHandler,
    EnableServiceHandler,
    EndProcessesHandler,
    ReloadUnitsHandler,
)
from runbooks.effects.take_over import ControlOtherHandler, LinkUnitHandler, StartByHandHandler
from runbooks.effects.tasks import RunTaskHandler

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker


def handler_of(effect: Effect) -> Handler[Any]:
    """Return the handler of an effect."""
    match effect:
        case EndProcesses():
            return EndProcessesHandler(effect)
        case TakeMessages():
            return TakeMessagesHandler(effect)
        case TakeUnacked():
            return TakeUnackedHandler(effect)
        case RestoreSelected():
            return RestoreSelectedHandler(effect)
        case SendAgain():
            return SendAgainHandler(effect)
        case RunTask():
            return RunTaskHandler(effect)
        case RevokeTasks():
            return RevokeTasksHandler(effect)
        case ShutDownNode():
            return ShutDownNodeHandler(effect)
        case _:
            return reverse_of(effect)


def reverse_of(effect: Reverse) -> Way:
    """Return the handler of an effect that undoes another."""
    match effect:
        case WriteFile():
            return WriteFileHandler(effect)
        case SetEnvironment():
            return SetEnvironmentHandler(effect)
        case LostContents():
            return LostContentsHandler(effect)
        case ControlService():
            return ControlServiceHandler(effect)
        case ReloadUnits():
            return ReloadUnitsHandler(effect)
        case EnableService():
            return EnableServiceHandler(effect)
        case ControlOther():
            return ControlOtherHandler(effect)
        case LinkUnit():
            return LinkUnitHandler(effect)
        case StartByHand():
            return StartByHandHandler(effect)
        case _:
            return _reverse_in_broker(effect)


def _reverse_in_broker(
    effect: RestoreMessages | RecallMessages | SetRateLimit | ResizePool | SwitchConsumer,
) -> Way:
    match effect:
        case RestoreMessages():
            return RestoreMessagesHandler(effect)
        case RecallMessages():
            return RecallMessagesHandler(effect)
        case SetRateLimit():
            return SetRateLimitHandler(effect)
        case ResizePool():
            return ResizePoolHandler(effect)
        case SwitchConsumer():
            return SwitchConsumerHandler(effect)
        case _:
            assert_never(effect)


def on_host(effect: Effect) -> OnHost[Any]:
    """Return the handler of an effect on a host. Raises TypeError for any other effect."""
    handler = handler_of(effect)
    if not isinstance(handler, OnHost):
        raise TypeError(f"{type(effect).__name__} is not an effect on a host")
    return handler


def in_broker(effect: Effect) -> InBroker[Any]:
    """Return the handler of an effect in the broker. Raises TypeError for any other effect."""
    handler = handler_of(effect)
    if not isinstance(handler, InBroker):
        raise TypeError(f"{type(effect).__name__} is not an effect in the broker")
    return handler


def fragments(
    host: FleetHost,
    effects: Mapping[str, Effect],
    read: Mapping[str, FileState],
) -> dict[str, str]:
    """Return the fragment of each effect; neighbours that need a reload of systemd share one.

    `read` are the files that some of them read. All units are judged together before the first is
    written. Raises TypeError if one is not an effect on a host, StalePlan if a file has changed
    since the look.
    """
    handlers = {name: on_host(effect) for name, effect in effects.items()}
    followers = [*handlers.values(), None][1:]
    together = _judged_together(host, effects)
    found: dict[str, str] = {}
    for (name, handler), follower in zip(handlers.items(), followers, strict=True):
        if isinstance(handler, Reloading) and isinstance(follower, Reloading):
            found[name] = handler.without_reload(host)
        else:
            fragment = handler.fragment(host, read.get(name))
            found[name] = together.get(name, "") + fragment
    return found


def _judged_together(host: FleetHost, effects: Mapping[str, Effect]) -> dict[str, str]:
    """Return the fragment that judges all units, by the first one's name; {} if fewer than two."""
    units: dict[str, WriteFile] = {}
    for name, effect in effects.items():
        if isinstance(effect, WriteFile) and effect.check == "unit":
            units[name] = effect
    if len(units) < 2:
        return {}
    first = next(iter(units))
    return {first: judge_together(host, units.values())}


def require_able(broker: "Broker", changes: Iterable[Change]) -> None:
    """Raise BrokerRefused if it is known beforehand that changes in the broker would fail."""
    queues: dict[str, None] = {}
    unacked = False
    for change in changes:
        handler = handler_of(change.do)
        if isinstance(handler, InBroker):
            queues.update(dict.fromkeys(handler.rewrites))
            unacked = unacked or handler.rewrites_unacked
    broker.require_able(queues, unacked=unacked)
