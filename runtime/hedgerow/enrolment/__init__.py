"""Enrolment: how a machine that makes its own key becomes a node. What both sides need: claims, requests, grants."""
