"""The devices a plan can run on."""
