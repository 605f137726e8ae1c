"""The vendor emulators keep their word: contract, quirks, faults, journal."""
