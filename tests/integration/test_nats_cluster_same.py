"""What holds on one NATS server holds on three: the decisive tests once more, on a cluster.

There a second publish in flight on a subject is refused, replicas lag, and leaders are elsewhere.
"""

import pytest

from shared.settings import Settings
from tests.integration.test_bus import (
    test_a_failed_item_comes_again_and_says_how_often_until_it_counts_as_poisoned,
    test_a_message_id_makes_a_repeated_publish_harmless,
    test_a_stream_is_accepted_once,
    test_a_wrong_expectation_is_refused_and_a_missing_stream_is_an_error,
    test_cancel_marks_are_durable_and_may_be_set_twice,
    test_long_work_is_not_given_to_anybody_else_while_it_is_in_progress,
    test_the_log_replays_in_batches_and_tails_what_is_committed,
    test_the_streams_of_the_design_exist_and_declaring_them_again_changes_nothing,
    test_work_is_fetched_into_free_slots_only_and_none_is_lost,
    test_work_left_at_the_drain_deadline_goes_back_at_once,
)
from tests.integration.test_merger_service import (
    test_a_merger_that_is_told_to_stop_hands_its_streams_over,
    test_a_restarted_merger_finds_an_ended_stream_and_still_hands_over_its_transcript,
    test_another_merger_goes_on_from_the_checkpoint_and_the_zombie_is_fenced,
    test_cancelling_keeps_what_was_said_and_tells_the_worker_to_stop,
    test_chunks_become_numbered_records_a_terminal_and_a_transcript,
    test_the_answer_of_a_lost_ack_is_found_in_the_log,
    test_two_writers_that_saw_the_same_record_never_both_succeed,
)

__all__ = [
    "test_a_failed_item_comes_again_and_says_how_often_until_it_counts_as_poisoned",
    "test_a_merger_that_is_told_to_stop_hands_its_streams_over",
    "test_a_message_id_makes_a_repeated_publish_harmless",
    "test_a_restarted_merger_finds_an_ended_stream_and_still_hands_over_its_transcript",
    "test_a_stream_is_accepted_once",
    "test_a_wrong_expectation_is_refused_and_a_missing_stream_is_an_error",
    "test_another_merger_goes_on_from_the_checkpoint_and_the_zombie_is_fenced",
    "test_cancel_marks_are_durable_and_may_be_set_twice",
    "test_cancelling_keeps_what_was_said_and_tells_the_worker_to_stop",
    "test_chunks_become_numbered_records_a_terminal_and_a_transcript",
    "test_long_work_is_not_given_to_anybody_else_while_it_is_in_progress",
    "test_the_answer_of_a_lost_ack_is_found_in_the_log",
    "test_the_log_replays_in_batches_and_tails_what_is_committed",
    "test_the_streams_of_the_design_exist_and_declaring_them_again_changes_nothing",
    "test_two_writers_that_saw_the_same_record_never_both_succeed",
    "test_work_is_fetched_into_free_slots_only_and_none_is_lost",
    "test_work_left_at_the_drain_deadline_goes_back_at_once",
]


@pytest.fixture
def bus_settings(cluster_settings: Settings) -> Settings:
    """In place of the single server's."""
    return cluster_settings
