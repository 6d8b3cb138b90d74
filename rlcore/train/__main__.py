from rlcore.cli.hydra_names import main

main()
