"""All targets, by name."""

from __future__ import annotations

import fuzz_manifest
import fuzz_packs
import fuzz_store
import fuzz_values

BY_NAME = {
    target.name: target
    for target in [*fuzz_store.TARGETS, *fuzz_packs.TARGETS, *fuzz_manifest.TARGETS, *fuzz_values.TARGETS]
}
