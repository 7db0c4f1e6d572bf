"""The report's colours in its two themes; text reaches 4.5:1 and every line 3:1 on each background."""

LIGHT = {
    "page": "#f6f6f3", "panel": "#ffffff", "ink": "#1c2024", "muted": "#565d66", "rule": "#d9dbd6", "accent": "#0b57a4",
    "gpu": "#2f7d4f", "cpu": "#6b4fa8", "ram": "#94561b",
    "run1": "#0b62b0", "run2": "#b8480b", "run3": "#1c7a4a", "run4": "#8a3ab0",
    "run5": "#b3243f", "run6": "#0c7480", "run7": "#7d6100", "run8": "#5a6068",
}  # fmt: skip
DARK = {
    "page": "#121518", "panel": "#1b1f24", "ink": "#eceef0", "muted": "#a3abb4", "rule": "#363c44", "accent": "#7fb9ff",
    "gpu": "#6fcf97", "cpu": "#b9a2f2", "ram": "#e3a86a",
    "run1": "#6fb1ff", "run2": "#ff9a5c", "run3": "#6fd6a0", "run4": "#d39bf2",
    "run5": "#ff8f9f", "run6": "#62d0da", "run7": "#dcc05a", "run8": "#b4bcc5",
}  # fmt: skip
RUNS = 8  # colours there are for runs; the next ones begin again with other dashes


def contrast(colour: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((_luminance(colour), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
