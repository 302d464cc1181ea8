//! code_switch (to be written).
