"""Faults to plant into the journals of a good run: the checker has to notice every one."""

from tests.chaos import mutants_kept as kept
from tests.chaos import mutants_seen as seen
from tests.chaos.planting import Mutation

MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "I1": (
        seen.an_attempt_is_spliced,
        seen.a_token_is_missing,
        seen.a_token_is_there_twice,
        seen.half_a_token_is_missing,
        seen.a_seam_is_not_said,
        seen.a_continuation_keeps_something_else,
        seen.a_truncated_branch_is_called_done,
        seen.a_stream_is_done_with_an_open_branch,
        seen.a_branch_goes_on_after_its_end,
        seen.tokens_were_made_up,
        seen.more_was_said_than_the_upstream_sent,
    ),
    "I2": (
        seen.an_event_is_dropped,
        seen.the_last_events_are_dropped,
        seen.an_event_comes_twice,
        seen.two_events_change_places,
        seen.a_number_is_used_for_another_event,
        seen.a_resumed_connection_starts_over,
        seen.the_second_reader_has_other_text,
        seen.an_event_is_delivered_before_it_is_committed,
        seen.an_event_is_cut_in_two,
        kept.a_stream_is_accepted_twice,
    ),
    "I3": (
        seen.the_terminal_never_comes,
        seen.there_are_two_terminals,
        seen.something_follows_the_terminal,
        seen.the_terminal_is_late,
        seen.a_reader_is_refused_its_position,
        kept.the_log_has_no_terminal,
        kept.a_stream_fails_for_nothing,
        kept.a_stream_fails_though_its_worker_lived,
        kept.a_branch_of_many_fails_for_nothing,
        kept.a_branch_is_cut_short,
        kept.a_stream_is_cancelled_unasked,
        kept.a_stream_ignores_its_cancel,
        kept.a_stream_is_never_accepted,
    ),
    "I4": (
        kept.a_row_is_missing,
        kept.a_row_is_doubled,
        kept.a_question_is_missing,
        kept.a_question_is_stored_wrongly,
        kept.a_stored_text_is_cut,
        kept.a_stored_status_is_wrong,
        kept.a_row_is_in_another_session,
        kept.a_row_is_of_no_stream,
    ),
    "I5": (
        seen.a_token_is_of_another_stream,
        seen.a_token_is_of_another_branch,
        seen.two_streams_are_swapped,
    ),
    "I6": (
        kept.an_upstream_call_is_made_once_too_often,
        kept.an_attempt_is_made_twice,
        kept.an_upstream_connection_stays_open,
        kept.a_cancel_leaves_the_upstream_running,
    ),
    "I8": (
        kept.work_is_left_in_a_queue,
        kept.half_a_message_waits_for_ever,
        kept.the_mesh_does_not_work_any_more,
        kept.a_process_does_not_come_back,
    ),
    "stale": (
        kept.an_epoch_goes_back,
        kept.two_owners_write_the_same_numbers,
        kept.a_record_of_the_log_is_lost,
    ),
}
"""Which invariant each of them breaks; it may break others as well."""
