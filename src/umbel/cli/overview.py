"""What `umbel --help` prints, by itself: what reads a command line takes longer to load than this takes to say."""

OVERVIEW = """\
Usage: umbel [OPTIONS] COMMAND [ARGS]...

  Train, evaluate and query models on data that never leaves its holder.

Options:
  --version             Print the version and exit.
  --install-completion  Have the shell complete commands; --show-completion
                        prints what it is told.
  -h, --help            Show this message and exit.

Commands:
  new           Make a folder with a small app that runs at once.
  run           Train an app's model in a simulated federation, or on a...
  resume        Go on with a run where it stopped.
  runs          List the runs, the latest last.
  show          Show a run: its facts, rounds, curves and failures, or its...
  logs          Print what has happened in a run.
  track         Tell a tracker of a run that was, or goes on.
  export        Write a run's model to a file, in a framework's own...
  compare       Show in what runs differ, and what they came to.
  sweep         Run an app with several settings and seeds, and compare what...
  best          Show the best run of a sweep, and the command that runs it...
  rm            Remove runs, with their models, for good.
  strategies    List the strategies: how a federation learns.
  folds         List the folds: how updates become one answer.
  transforms    List the transforms: steps on updates at both ends.
  samplers      List the samplers: who is asked.
  partitioners  List the partitioners: how data is split over clients.
  stop          Stop a run on a server; what it has learned is kept.
  pull          Fetch a run's folder from a server: log, summary and models.
  chaos         Drill a deployment on this machine: kill, stop and cut off...
  doctor        Check this machine, and say what to do; exits with 3 where...
  node          Be a node: hold data, and do a server's tasks on it.
  login         Keep an operator's token, so that later commands find it.
  pack          Make two archives: of the client, which nodes run, and of...
  diff          Show how two archives differ, file by file and line by line.
  server        Be a server: nodes and operators connect to it.
  nodes         Invite, list, approve and revoke a server's nodes.
  operators     Add, list and remove who may use a server.
  authority     Let another key take the place of the one by which a server...
  audit         Print who did what on a server; see whether that record is...
  privacy       Plan noise, say who sees what and what was spent, audit, attack.

  Exit codes:
    0    done
    1    a bug in Umbel: --debug shows where
    2    a wrong command line
    3    something to change: the app, its strategy, a setting, the data
    4    the run failed: its clients brought no update
    5    the disk: full, not writable, a damaged file
    6    the server: not reached, or lost
    7    the server says no: an unknown token, a role that may not
    130  stopped by Ctrl-C, 143 by SIGTERM: umbel resume goes on
  With --json, what failed is an object "error" on stdout; a number that is not
  finite is null.
"""
