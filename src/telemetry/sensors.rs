//! Temperatures and powers of the device, where the kernel shows them.

use std::fs;
use std::path::Path;

/// One reading.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Such as `cpu-thermal` or `ina3221 VDD_IN`.
    pub name: String,
    pub reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    Celsius(f64),
    Watts(f64),
}

/// Reads the thermal zones and the hardware monitors below `sys` (`/sys` but in tests). What cannot be read is left
/// out: a sensor that sleeps answers with an error.
#[must_use]
pub fn read(sys: &Path) -> Vec<Sensor> {
    let mut sensors = Vec::new();
    for zone in folders(&sys.join("class/thermal"), "thermal_zone") {
        if let (Some(name), Some(milli)) = (text(&zone.join("type")), number(&zone.join("temp"))) {
            sensors.push(Sensor { name, reading: Reading::Celsius(milli / 1e3) });
        }
    }
    for chip in folders(&sys.join("class/hwmon"), "hwmon") {
        let Some(chip_name) = text(&chip.join("name")) else { continue };
        for index in 1..=32 {
            let at = |kind: &str, what: &str| chip.join(format!("{kind}{index}_{what}"));
            let named = |kind: &str| match text(&at(kind, "label")) {
                Some(label) => format!("{chip_name} {label}"),
                None => format!("{chip_name} {kind}{index}"),
            };
            if let Some(milli) = number(&at("temp", "input")) {
                let reading = Reading::Celsius(milli / 1e3);
                sensors.push(Sensor { name: named("temp"), reading });
            }
            // Microwatts, or the millivolts and milliamperes of a Jetson's INA3221.
            let micro = number(&at("power", "input")).or_else(|| number(&at("power", "average")));
            if let Some(micro) = micro {
                sensors.push(Sensor { name: named("power"), reading: Reading::Watts(micro / 1e6) });
            } else if let (Some(milli_volt), Some(milli_ampere)) =
                (number(&at("in", "input")), number(&at("curr", "input")))
            {
                let reading = Reading::Watts(milli_volt * milli_ampere / 1e6);
                sensors.push(Sensor { name: named("in"), reading });
            }
        }
    }
    sensors
}

fn folders(parent: &Path, prefix: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jetson_and_a_workstation_show_temperature_and_power() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join("class").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("thermal/thermal_zone0/type", "cpu-thermal\n");
        write("thermal/thermal_zone0/temp", "48250\n");
        write("thermal/thermal_zone1/type", "asleep\n");
        write("hwmon/hwmon3/name", "ina3221\n");
        write("hwmon/hwmon3/in1_label", "VDD_IN\n");
        write("hwmon/hwmon3/in1_input", "5000\n");
        write("hwmon/hwmon3/curr1_input", "2400\n");
        write("hwmon/hwmon4/name", "amdgpu\n");
        write("hwmon/hwmon4/power1_average", "33000000\n");
        write("hwmon/hwmon4/temp1_input", "61000\n");
        let found = read(sys.path());
        let expected = [
            ("cpu-thermal", Reading::Celsius(48.25)),
            ("ina3221 VDD_IN", Reading::Watts(12.0)),
            ("amdgpu temp1", Reading::Celsius(61.0)),
            ("amdgpu power1", Reading::Watts(33.0)),
        ];
        let expected = expected.map(|(name, reading)| Sensor { name: name.to_owned(), reading });
        assert_eq!(found, expected);
        assert!(read(Path::new("/no/such/place")).is_empty());
    }
}
