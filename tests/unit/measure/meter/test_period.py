from rightbatch.measure.meter.period import FIRST_PERIOD, Period


def test_a_fixed_period_stays() -> None:
    period = Period(3)
    for k in range(20):
        period.add(5.0 if k % 3 == 0 else 1.0, measured=k % 3 == 0)
        period.follow(period.extra_share)
    assert period.updates == 3


def test_the_first_updates_do_not_count() -> None:
    period = Period(None)
    for seconds, measured in ((9.0, True), (5.0, False), (1.0, False), (1.05, True)):
        period.add(seconds, measured=measured)
    period.follow(period.extra_share)
    assert period.updates == 5


def test_outliers_do_not_count() -> None:
    period = Period(None)
    for k in range(60):
        period.add(1000.0 if k == 30 else 1.05 if k % 8 == 0 else 1.0, measured=k % 8 == 0)
        period.follow(period.extra_share)
    assert period.updates == 5


def test_without_timings_the_first_period_holds() -> None:
    period = Period(None)
    period.add(1.0, measured=True)
    period.follow(period.extra_share)
    assert period.updates == FIRST_PERIOD
