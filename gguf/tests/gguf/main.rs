//! llama.cpp on small models that are written here: no network, no Python.

mod command;
mod models;
mod tiny;
