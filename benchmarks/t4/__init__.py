"""How long a step takes on T4s, by a cost model: every operation counted, each priced by measured figures."""
