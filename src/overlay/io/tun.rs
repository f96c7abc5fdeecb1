//! The TUN device: where the kernel's packets for the overlay come out.

use std::{future::Future, io};

use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

use crate::overlay::batch::Packets;

/// Packets read at once, so that the other direction gets its turn.
const READ_AT_ONCE: usize = 64;
/// No packet is larger, whatever the MTU.
const MAX_PACKET: usize = 65_535;

/// A source and a sink of IP packets.
pub trait Tun: Send {
    /// Waits for packets and reads those that are there. Cancel-safe.
    fn recv(&mut self, into: &mut Packets) -> impl Future<Output = io::Result<()>> + Send;
    /// Hands a packet to the kernel.
    fn send(&mut self, packet: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// A TUN device of the kernel's. Gone when dropped, with its addresses and routes.
pub struct TunDevice(AsyncDevice);

impl TunDevice {
    /// A new device, down and without address.
    pub fn create(name: &str) -> io::Result<TunDevice> {
        let device =
            DeviceBuilder::new().name(name).layer(Layer::L3).enable(false).packet_information(false).build_async()?;
        Ok(TunDevice(device))
    }
}

impl Tun for TunDevice {
    async fn recv(&mut self, into: &mut Packets) -> io::Result<()> {
        loop {
            self.0.readable().await?;
            let mut count = 0;
            while count < READ_AT_ONCE
                && let Some(spare) = into.spare(MAX_PACKET)
            {
                match self.0.try_recv(&mut spare[..MAX_PACKET]) {
                    Ok(len) => into.push(len),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
                count += 1;
            }
            if count > 0 {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).await.map(|_| ())
    }
}
