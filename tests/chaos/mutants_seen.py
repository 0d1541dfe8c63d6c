"""Faults in what readers were given: on the way to them, and in the text itself. Pure."""

from msgspec.structs import replace

from tests.chaos.journals import Journals
from tests.chaos.planting import answer, at, changed, edit, middle, reading

# What went wrong on the way to a reader -------------------------------------------------------


def an_event_is_dropped(journals: Journals) -> None:
    read = reading(journals)
    del read.events[middle(read)]


def the_last_events_are_dropped(journals: Journals) -> None:
    del reading(journals, "late middle").events[-3:]


def an_event_comes_twice(journals: Journals) -> None:
    read = reading(journals)
    read.events.insert(middle(read), read.events[middle(read)])


def two_events_change_places(journals: Journals) -> None:
    read = reading(journals)
    index = middle(read)
    read.events[index : index + 2] = read.events[index : index + 2][::-1]


def a_number_is_used_for_another_event(journals: Journals) -> None:
    read = reading(journals)
    index = middle(read)
    read.events[index] = replace(
        read.events[index + 1],
        n=read.events[index].n,
        raw=read.events[index + 1].raw.replace(
            f"id: {read.events[index + 1].n}", f"id: {read.events[index].n}"
        ),
    )


def a_resumed_connection_starts_over(journals: Journals) -> None:
    read = reading(journals)
    index = middle(read)
    read.events[index:] = read.events


def the_second_reader_has_other_text(journals: Journals) -> None:
    read = reading(journals, "start")
    edit(read, middle(read), "|0|", "|1|")


def an_event_is_delivered_before_it_is_committed(journals: Journals) -> None:
    log = journals.log[reading(journals).sid]
    log.remove([record for record in log if record.events][-2])


def an_event_is_cut_in_two(journals: Journals) -> None:
    read = reading(journals)
    index = middle(read)
    event = read.events[index]
    read.events[index] = replace(event, raw=event.raw[: len(event.raw) // 2])


def the_terminal_never_comes(journals: Journals) -> None:
    reading(journals).events.pop()


def there_are_two_terminals(journals: Journals) -> None:
    read = reading(journals)
    last = read.events[-1]
    again = changed(last, f"id: {last.n}", f"id: {last.n + 1}")
    read.events.append(replace(again, n=last.n + 1))


def something_follows_the_terminal(journals: Journals) -> None:
    read = reading(journals)
    last = read.events[-1]
    more = f'id: {last.n + 1}\ndata: {{"type":"delta","branch":0,"text":"x"}}\n\n'
    read.events.append(replace(last, n=last.n + 1, raw=more))


def the_terminal_is_late(journals: Journals) -> None:
    read = reading(journals)
    read.events[-1] = replace(read.events[-1], at=read.events[-1].at + 120.0)


def a_reader_is_refused_its_position(journals: Journals) -> None:
    reading(journals).strange.append("GET after 12: 400 event 12 is not of this stream")


# What went wrong in the text ------------------------------------------------------------------


def in_log_and_readings(journals: Journals, old: str, new: str) -> None:
    """A fault before the commit: whoever reads the log has it, and Postgres too."""
    for read in journals.readings:
        read.events = [replace(e, raw=e.raw.replace(old, new)) for e in read.events]
    for log in journals.log.values():
        for record in log:
            for event in record.events:
                if "text" in event:
                    event["text"] = event["text"].replace(old, new)
    for row in journals.rows:
        row.content = row.content.replace(old, new)


def a_token(journals: Journals, text: str = "|") -> tuple[str, list[str]]:
    """A token in the middle of an answer, and its four parts."""
    tokens = [token for token in answer(journals).content.split(" ") if text in token]
    token = tokens[len(tokens) // 2]
    return token, token.split("|")


def an_attempt_is_spliced(journals: Journals) -> None:
    token, (sid, branch, _, index) = a_token(journals)
    in_log_and_readings(journals, token, f"{sid}|{branch}|1000|{index}")


def a_token_is_of_another_stream(journals: Journals) -> None:
    token, (sid, branch, attempt, index) = a_token(journals)
    in_log_and_readings(journals, token, f"{sid[::-1]}|{branch}|{attempt}|{index}")


def a_token_is_of_another_branch(journals: Journals) -> None:
    token, (sid, branch, attempt, index) = a_token(journals)
    in_log_and_readings(journals, token, f"{sid}|{int(branch) + 1}|{attempt}|{index}")


def a_token_is_missing(journals: Journals) -> None:
    token, _ = a_token(journals)
    in_log_and_readings(journals, token + " ", "")


def a_token_is_there_twice(journals: Journals) -> None:
    token, _ = a_token(journals)
    in_log_and_readings(journals, token + " ", f"{token} {token} ")


def half_a_token_is_missing(journals: Journals) -> None:
    token, _ = a_token(journals)
    in_log_and_readings(journals, token, token[: len(token) // 2])


def two_streams_are_swapped(journals: Journals) -> None:
    first, second = [r for r in journals.readings if r.reader == "first"][:2]
    first.events, second.events = second.events, first.events


def a_seam_is_not_said(journals: Journals) -> None:
    read = reading(journals, having="branch.reset")
    edit(read, at(read, "branch.reset"), "branch.reset", "branch.start")


def a_continuation_keeps_something_else(journals: Journals) -> None:
    read = reading(journals, having="branch.continued")
    edit(read, at(read, "branch.continued"), '"kept_chars":', '"kept_chars":1')


def a_truncated_branch_is_called_done(journals: Journals) -> None:
    """The upstream was to say more than it did."""
    done = reading(journals, having='"branch.done"')
    stream = next(each for each in journals.asked if each.sid == done.sid)
    stream.branches = [replace(branch, tokens=branch.tokens + 1) for branch in stream.branches]


def a_stream_is_done_with_an_open_branch(journals: Journals) -> None:
    read = reading(journals, having='"branch.done"')
    edit(read, at(read, '"branch.done"'), "branch.done", "json")


def a_branch_goes_on_after_its_end(journals: Journals) -> None:
    read = reading(journals, having='"branch.done"')
    read.events.insert(at(read, '"branch.done"') + 1, read.events[at(read, '"delta"')])


def tokens_were_made_up(journals: Journals) -> None:
    """Of an attempt that the upstream knows nothing of."""
    sid, branch = a_token(journals)[1][:2]
    journals.calls = [c for c in journals.calls if (c.sid, str(c.branch)) != (sid, branch)]


def more_was_said_than_the_upstream_sent(journals: Journals) -> None:
    journals.calls = [replace(call, tokens_sent=call.tokens_sent // 2) for call in journals.calls]
