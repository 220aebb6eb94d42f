"""Inference tables: what endpoints were asked and what they answered, in files that SQL reads (contract C.6)."""

from aiquery_serving.payload_log.log import PayloadLog
from aiquery_serving.payload_log.rows import PayloadRow
from aiquery_serving.payload_log.settings import check_inference_table_change, is_logged

__all__ = ["PayloadLog", "PayloadRow", "check_inference_table_change", "is_logged"]
