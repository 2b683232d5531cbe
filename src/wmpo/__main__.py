"""``wmpo`` and ``python -m wmpo``. Simulator processes import this file too, and need nothing of the rest."""


def main() -> None:
    from wmpo.cli import main as run

    run()


if __name__ == "__main__":
    main()
