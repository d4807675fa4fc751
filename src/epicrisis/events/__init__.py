"""Events in: MEDS datasets, and the tokenised pickles of the text pipeline turned into one."""

from epicrisis.events.meds import EVENT_SCHEMA, SPLITS, MedsDataset, open_meds

__all__ = ["EVENT_SCHEMA", "SPLITS", "MedsDataset", "open_meds"]
