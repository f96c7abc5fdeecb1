//! nginx as somebody would put it before model servers.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command};

/// Its configuration file, and how it is told to use it.
pub fn configure(command: &mut Command, workers: &[SocketAddr], port: u16, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("nginx.conf");
    fs::write(&file, text(workers, port, folder)?)?;
    command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(folder).arg("-c").arg(file);
    Ok(())
}

fn text(workers: &[SocketAddr], port: u16, folder: &Path) -> anyhow::Result<String> {
    let folder = folder.display();
    let mut text = format!(
        "user root;\ndaemon off;\nworker_processes auto;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log warn;\n\
         events {{ worker_connections 8192; }}\nhttp {{\n    access_log off;\n    keepalive_requests 1000000;\n"
    );
    for kept in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "    {kept}_temp_path {folder}/{kept};")?;
    }
    text.push_str("    upstream workers {\n");
    for worker in workers {
        writeln!(text, "        server {worker};")?;
    }
    writeln!(
        text,
        "        keepalive 256;\n        keepalive_requests 1000000;\n    }}\n    server {{\n        \
         listen 127.0.0.1:{port};\n        location / {{\n            proxy_pass http://workers;\n            \
         proxy_http_version 1.1;\n            proxy_set_header Connection \"\";\n            proxy_buffering off;\n            \
         proxy_read_timeout 10m;\n        }}\n    }}\n}}"
    )?;
    Ok(text)
}
