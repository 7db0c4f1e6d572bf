"""The names that files of JSON and tables have for the parts of a record."""

WORDS = ("tokens", "words")  # lists of words
TAGS = ("tags", "ner_tags", "labels")  # lists of tags, one per word
TEXTS = ("text", "data")
SPANS = ("spans", "entities", "ents")  # objects with start and end; those of Prodigy are called spans
DOCCANO = ("label", "labels", "entities", "annotations")  # of doccano's versions
TYPES = ("label", "type", "entity_group", "entity", "tag")  # of one such object
PRODIGY = ("_input_hash", "_task_hash", "answer")  # what only Prodigy's records have
