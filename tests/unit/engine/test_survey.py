"""Which processes of a host are the application's, and by which of their managers it is known."""

from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options, Unit
from runbooks.core.survey import HostSurvey, SeenProcess, SeenService
from runbooks.engine.survey import of_application

UNIT = Unit("celery.service", "/etc/systemd/system/celery.service", "enabled", names_celery=True)


def seen(*mains: CeleryProcess) -> HostSurvey:
    details = {one.pid: SeenProcess("/srv/shop") for one in mains}
    service = SeenService(UNIT.name, "its file", Options("worker", "shop"))
    census = Census(mains, {UNIT.name: UNIT})
    return HostSurvey(
        "web1", {}, "web1", census, "root", mains=mains, details=details, services=(service,)
    )


def worker(pid: int, unit: str = "", app: str = "shop") -> CeleryProcess:
    options = Options("worker", app, f"w{pid}@web1")
    return CeleryProcess(pid, pid, 0.0, "S", Kind.MAIN, options, 1, unit=unit)


def test_of_several_managers_the_one_with_most_workers_is_used_and_the_others_are_known() -> None:
    by_unit, by_hand = (worker(1, UNIT.name), worker(2, UNIT.name)), (worker(3),)
    found = of_application(seen(*by_unit, *by_hand), "shop", "/srv/shop")
    assert (found.manager, found.mains, found.others) == ("systemd", by_unit, by_hand)
    more = (*by_hand, worker(4), worker(5))
    found = of_application(seen(*by_unit, *more), "shop", "/srv/shop")
    assert (found.manager, found.mains, found.others) == ("none", more, by_unit)


def test_another_application_and_another_folder_are_not_meant() -> None:
    mine, other = worker(1), worker(2, app="mail")
    found = of_application(seen(mine, other), "shop", "/srv/shop")
    assert (found.mains, found.others, found.elsewhere) == ((mine,), (), ())
    away = replace(
        seen(mine, worker(3)), details={1: SeenProcess("/srv/shop"), 3: SeenProcess("/x")}
    )
    found = of_application(away, "shop", "/srv/shop")
    assert (found.mains, [one.pid for one in found.elsewhere]) == ((mine,), [3])
