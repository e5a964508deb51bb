"""The launch form without its screen: fields made from the schema, a draft of changes, and what it would take."""
