/// Where a voxel grid lies in patient space.
///
/// The centre of voxel (slice k, row j, column i) is
/// `origin + i·spacing[0]·direction[0] + j·spacing[1]·direction[1] + k·spacing[2]·direction[2]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Centre of voxel (0, 0, 0), mm, LPS.
    pub origin: [f64; 3],
    /// Unit vectors along which the column, row and slice index grow, LPS.
    pub direction: [[f64; 3]; 3],
    /// Distance between neighbouring columns, rows and slices, mm.
    pub spacing: [f64; 3],
}

impl Geometry {
    /// Patient coordinates (mm, LPS) of the centre of voxel (slice, row, column).
    #[must_use]
    pub fn position(&self, slice: f64, row: f64, column: f64) -> [f64; 3] {
        let steps = [column, row, slice];
        std::array::from_fn(|axis| {
            (0..3).fold(self.origin[axis], |sum, index| {
                sum + steps[index] * self.spacing[index] * self.direction[index][axis]
            })
        })
    }

    /// For each index (column, row, slice): the patient axis (0 = x, 1 = y, 2 = z) it runs along most
    /// closely, and whether it grows towards that axis's positive end (L, P, S). Every axis is taken once.
    #[must_use]
    pub fn closest_axes(&self) -> [(usize, bool); 3] {
        const ORDERS: [[usize; 3]; 6] =
            [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let alignment =
            |order: &[usize; 3]| (0..3).map(|i| self.direction[i][order[i]].abs()).sum::<f64>();
        let order = ORDERS
            .iter()
            .max_by(|a, b| alignment(a).total_cmp(&alignment(b)))
            .unwrap_or(&ORDERS[0]);
        std::array::from_fn(|index| (order[index], self.direction[index][order[index]] > 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_axes_of_an_oblique_sagittal_grid_use_each_axis_once() {
        let grid = Geometry {
            origin: [0.0; 3],
            direction: [[0.1, 0.99, 0.0], [0.0, 0.1, -0.99], [-0.99, 0.1, 0.0]],
            spacing: [1.0; 3],
        };
        assert_eq!(grid.closest_axes(), [(1, true), (2, false), (0, false)]);
    }

    #[test]
    fn position_walks_columns_rows_and_slices() {
        let grid = Geometry {
            origin: [10.0, 20.0, 30.0],
            direction: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            spacing: [0.5, 2.0, 3.0],
        };
        assert_eq!(grid.position(1.0, 2.0, 4.0), [12.0, 24.0, 33.0]);
    }
}
