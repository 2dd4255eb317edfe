from mlx_serving.core.schedule.admission import ArrivalWindow


def test_a_lone_arrival_is_not_held() -> None:
    window = ArrivalWindow(0.008)
    window.note_arrival(1.0)
    assert window.is_open(1.0)
    window.note_arrival(1.1)
    assert window.is_open(1.1)


def test_the_second_of_a_burst_closes_admission_until_the_window_of_the_first_is_over() -> None:
    window = ArrivalWindow(0.008)
    window.note_arrival(1.0)
    window.note_arrival(1.003)
    assert not window.is_open(1.007)
    window.note_arrival(1.006)
    assert window.is_open(1.009)


def test_a_burst_that_goes_on_begins_anew() -> None:
    window = ArrivalWindow(0.008)
    for arrival in (1.0, 1.005, 1.010):
        window.note_arrival(arrival)
    assert not window.is_open(1.017)
    assert window.is_open(1.0181)


def test_without_a_window_nothing_is_held() -> None:
    window = ArrivalWindow(0.0)
    window.note_arrival(1.0)
    window.note_arrival(1.0)
    assert window.is_open(1.0)
