from rlcore.surroundings import settle

settle()  # before anything is imported that the user's folder may have a file of the same name for

from rlcore.cli.train import main  # noqa: E402

main()
