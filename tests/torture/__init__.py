"""The long promises, run by `make torture`: each module has `run(folder, budget_s) -> list[Row]`."""
