//! Declares open enumerations, and layouts that the compiler checks.
//! May: nothing. Input: trusted.

/// Declares an enumeration of an integer that keeps the numbers it does not know.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A number this version does not define.
            Unknown($int),
        }

        impl $name {
            /// All that are defined, with their names.
            pub const ALL: &[(Self, &str)] = &[$((Self::$variant, stringify!($variant)),)*];

            /// Reads the number.
            #[must_use]
            pub const fn from_raw(raw: $int) -> Self {
                match raw {
                    $($value => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The number.
            #[must_use]
            pub const fn raw(self) -> $int {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Unknown(other) => other,
                }
            }
        }
    };
}

/// Checks a `repr(C)` structure while it is compiled: its size, that `fields` are all it has, and
/// the offset of each.
macro_rules! layout {
    ($name:ident: $size:literal { $($offset:literal $field:ident,)* }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
            let _: fn(&$name) = |$name { $($field: _,)* }| ();
        };
    };
}
