"""Enrolment of machines in the region: claims, pending machines, approval."""
