"""The smallest suite that measures something: what tests of the command line sweep."""

BLOCK = "suite.blocks=[{solver:euler,grid:polynomial,end:zero,nfe:1,metrics:[fd_digits]}]"
