from rlcore.surroundings import settle

settle()  # before all imports that a file in the user's folder could be taken for

from rlcore.cli.train import main  # noqa: E402

main()
