"""The report's colours; comparison.png has the light ones.

On the page, text has a contrast of at least 4.5:1 and every line 3:1, in both themes.
"""

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
RUNS = 8  # distinct colours for runs; further runs repeat them with other dashes
