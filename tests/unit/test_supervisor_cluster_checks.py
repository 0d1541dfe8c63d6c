"""What the doctor says of a cluster: who leads, who lags, what to do."""

from deploy.mesh.cluster_checks import nodes_of, streams_of
from deploy.mesh.ports import free_ports
from shared.bus import Replicas


def test_a_stream_is_well_when_every_copy_is_current() -> None:
    state = Replicas("BRAID_TASKS", "braid-nats-1", ("braid-nats-2", "braid-nats-3"), ())
    (finding,) = streams_of([state], 3)
    assert finding.is_ok
    assert finding.detail == "3 of 3 current, leader braid-nats-1"


def test_a_copy_that_lags_is_named() -> None:
    state = Replicas("BRAID_TASKS", "braid-nats-1", ("braid-nats-2",), ("braid-nats-3",))
    (finding,) = streams_of([state], 3)
    assert not finding.is_ok
    assert "2 of 3 current" in finding.detail
    assert "behind: braid-nats-3" in finding.detail


def test_a_stream_without_a_leader_or_with_too_few_copies_is_a_problem() -> None:
    leaderless = Replicas("A", "", (), ("braid-nats-2",))
    single = Replicas("B", "braid-nats-1", (), ())
    assert [finding.is_ok for finding in streams_of([leaderless, single], 3)] == [False, False]


def test_streams_that_are_kept_once_are_not_listed() -> None:
    assert streams_of([Replicas("A", "", (), ())], 1) == []


def test_nodes_that_do_not_answer_are_named_and_leave_no_leader() -> None:
    monitors = {f"nats-{n}": f"http://127.0.0.1:{port}" for n, port in enumerate(free_ports(3))}
    findings = nodes_of(monitors)
    assert [finding.what for finding in findings] == [*monitors, "meta leader"]
    assert not any(finding.is_ok for finding in findings)
