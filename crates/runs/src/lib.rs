//! What made an adapter, and what comes next: the registry of runs.
