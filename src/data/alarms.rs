//! alarms (to be written).
