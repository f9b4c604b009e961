"""All targets, by name."""

from __future__ import annotations

import fuzz_answers
import fuzz_client
import fuzz_columns
import fuzz_manifest
import fuzz_packs
import fuzz_service
import fuzz_store
import fuzz_tars
import fuzz_values

BY_NAME = {
    target.name: target
    for target in [
        *fuzz_store.TARGETS,
        *fuzz_packs.TARGETS,
        *fuzz_manifest.TARGETS,
        *fuzz_values.TARGETS,
        *fuzz_columns.TARGETS,
        *fuzz_client.TARGETS,
        *fuzz_answers.TARGETS,
        *fuzz_service.TARGETS,
        *fuzz_tars.TARGETS,
    ]
}
