//! Faults by script: what goes wrong at which request.
