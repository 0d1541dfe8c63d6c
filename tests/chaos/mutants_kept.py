"""Faults in what is kept: the log, Postgres, the upstream's calls, the queues. Pure."""

from msgspec.structs import replace

from tests.chaos.journals import Journals, terminal_of
from tests.chaos.planting import answer, reading, records

# What went wrong in the log -------------------------------------------------------------------


def an_epoch_goes_back(journals: Journals) -> None:
    records(journals, epochs=2)[-1].epoch = 1


def two_owners_write_the_same_numbers(journals: Journals) -> None:
    log = records(journals, epochs=2)
    log[-1].n_first -= 1


def a_record_of_the_log_is_lost(journals: Journals) -> None:
    log = records(journals)
    del log[next(i for i, record in enumerate(log) if record.events) + 1]


def a_stream_is_accepted_twice(journals: Journals) -> None:
    records(journals)[1].opens = True


def the_log_has_no_terminal(journals: Journals) -> None:
    log = records(journals)
    log[-1].events.pop()
    log[-1].finished = False


def a_stream_fails_for_nothing(journals: Journals) -> None:
    """Its policy says that it goes on whatever becomes of its worker."""
    failed = next(sid for sid, log in journals.log.items() if terminal_of(log) == "error")
    next(each for each in journals.asked if each.sid == failed).mid_stream = "restart"


def a_stream_fails_though_its_worker_lived(journals: Journals) -> None:
    journals.hits = [hit for hit in journals.hits if hit.service != "worker"]


def a_branch_of_many_fails_for_nothing(journals: Journals) -> None:
    """The stream is `done` all the same, because another branch is."""
    done = next(log for log in journals.log.values() if terminal_of(log) == "done")
    ends = [e for record in done for e in record.events if e["type"] == "branch.done"]
    ends[0].update(type="branch.error", code="upstream_error")


def a_branch_is_cut_short(journals: Journals) -> None:
    done = next(log for log in journals.log.values() if terminal_of(log) == "done")
    ends = [e for record in done for e in record.events if e["type"] == "branch.done"]
    ends[0]["finish_reason"] = "incomplete"


def a_stream_is_cancelled_unasked(journals: Journals) -> None:
    for each in journals.asked:
        each.cancelled_at = each.cancel_tried_at = None


def a_stream_ignores_its_cancel(journals: Journals) -> None:
    done = reading(journals, having='"type":"done"')
    stream = next(each for each in journals.asked if each.sid == done.sid)
    stream.cancel_tried_at = stream.cancelled_at = done.events[-1].at - 15.0


def a_stream_is_never_accepted(journals: Journals) -> None:
    journals.asked[0].accepted_at = None


# What went wrong behind or before the log -----------------------------------------------------


def a_row_is_missing(journals: Journals) -> None:
    journals.rows.remove(answer(journals))


def a_row_is_doubled(journals: Journals) -> None:
    row = answer(journals)
    journals.rows.append(replace(row, id=row.id + "x"))


def a_question_is_missing(journals: Journals) -> None:
    journals.rows.remove(next(row for row in journals.rows if row.role == "user"))


def a_question_is_stored_wrongly(journals: Journals) -> None:
    next(row for row in journals.rows if row.role == "user").content += "?"


def a_stored_text_is_cut(journals: Journals) -> None:
    row = answer(journals)
    row.content = row.content[:-1]


def a_stored_status_is_wrong(journals: Journals) -> None:
    answer(journals).status = "incomplete"


def a_row_is_in_another_session(journals: Journals) -> None:
    answer(journals).session_id = "somebody-elses"


def a_row_is_of_no_stream(journals: Journals) -> None:
    journals.rows.append(replace(answer(journals), sid="0" * 22))


def an_upstream_call_is_made_once_too_often(journals: Journals) -> None:
    sid = reading(journals, "late middle").sid
    call = next(each for each in journals.calls if each.sid == sid)
    journals.hits.clear()
    journals.calls.append(replace(call, attempt=call.attempt + 1))


def an_attempt_is_made_twice(journals: Journals) -> None:
    journals.calls.append(journals.calls[0])


def an_upstream_connection_stays_open(journals: Journals) -> None:
    journals.calls[0] = replace(journals.calls[0], ended_at=None, ended=None)


def a_cancel_leaves_the_upstream_running(journals: Journals) -> None:
    journals.hits.clear()
    stream = next(each for each in journals.asked if each.cancelled_at is not None)
    late = (stream.cancelled_at or 0.0) + 1.5
    journals.calls = [
        replace(call, ended_at=late) if call.sid == stream.sid else call for call in journals.calls
    ]


def work_is_left_in_a_queue(journals: Journals) -> None:
    journals.health.backlog["BRAID_TASKS"] = 1


def half_a_message_waits_for_ever(journals: Journals) -> None:
    journals.health.pieces_left = 1


def the_mesh_does_not_work_any_more(journals: Journals) -> None:
    journals.health.probe = "error"


def a_process_does_not_come_back(journals: Journals) -> None:
    journals.hits[0].healed_at = None
