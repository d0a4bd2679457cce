"""Stand-ins, references, tables of cases and small models that several tests share."""
