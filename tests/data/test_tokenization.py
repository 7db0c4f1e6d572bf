from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.tokenization import cut_windows


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_windows_cover_every_word_once_within_the_room_and_overlap(data):
    room = data.draw(st.integers(4, 50))
    sizes = data.draw(st.lists(st.integers(1, room), min_size=1, max_size=120))
    windows = cut_windows(sizes, room)
    assert [word for _, _, owned in windows for word in owned] == list(range(len(sizes)))
    for first, last, owned in windows:
        assert sum(sizes[first:last]) <= room
        assert all(first <= word < last for word in owned)
    for (_, end, _), (start, _, _) in zip(windows, windows[1:], strict=False):
        assert sum(sizes[start:end]) <= room // 4


def test_a_word_belongs_to_the_window_with_more_context_on_its_poorer_side():
    windows = cut_windows([1] * 100, 40)
    for word in range(100):
        context = {
            number: min(word - first if first else 99, last - 1 - word if last < 100 else 99)
            for number, (first, last, _) in enumerate(windows)
            if first <= word < last
        }
        owner = next(number for number, (_, _, owned) in enumerate(windows) if word in owned)
        assert context[owner] >= max(context.values()) - 1  # a tie in the middle may go either way
