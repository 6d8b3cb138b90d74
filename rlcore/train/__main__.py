from rlcore.cli.train import main

main()
