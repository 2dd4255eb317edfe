from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_serving.catalog.hub_progress import TransferProgress, silent_bar
from mlx_serving.catalog.progress import Progress


@pytest.fixture
def reports() -> list[Progress]:
    return []


@pytest.fixture
def transfer(reports: list[Progress]) -> TransferProgress:
    return TransferProgress("org/model", total=100, done=10, on_progress=reports.append)


def test_bars_of_several_files_add_up(transfer: TransferProgress, reports: list[Progress]) -> None:
    first, second = transfer.bar_class()(total=50), transfer.bar_class()(total=40, initial=5)
    first.update(20)
    second.update(1)
    first.update(-20)  # the transfer starts anew
    assert [report.done for report in reports] == [10, 15, 35, 36, 16]


def test_bytes_written_count_and_bytes_received_do_not(transfer: TransferProgress, reports: list[Progress]) -> None:
    """As huggingface_hub's storage for large files reports them: compressed on the way, and deduplicated."""
    reporting: Any = importlib.import_module("huggingface_hub.utils._xet_progress_reporting")
    with reporting.XetDownloadProgressReporter(
        reconstruction_desc="", total=90, log_level=0, tqdm_class=transfer.bar_class()
    ) as reporter:
        for written, received in ((30, 10), (90, 25)):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=90,
                    total_bytes_completed=written,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completed=received,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )
    assert [report.done for report in reports] == [10, 40, 100]


def test_after_a_stop_every_bar_ends_its_transfer(transfer: TransferProgress, reports: list[Progress]) -> None:
    bar = transfer.bar_class()(total=50)
    transfer.stop()
    with pytest.raises(Exception, match=r"^$"):
        bar.update(1)
    assert len(reports) == 1
    assert transfer.callback_error is None


def test_the_silent_bar_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_bar()(total=3) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
