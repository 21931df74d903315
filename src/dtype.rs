//! Element types and tensors between the rooms, which know nothing of each other. Pure.

use statehouse_inference as inference;
use statehouse_inference::Tensor;
use statehouse_proto::v1;
use statehouse_store as store;
use statehouse_store::Value;

macro_rules! dtypes {
    ($($name:ident = $proto:ident),*) => {
        /// The inference room's name of a stored type.
        pub fn to_inference(dtype: store::DType) -> inference::DType {
            match dtype { $(store::DType::$name => inference::DType::$name,)* }
        }

        /// The store's name of a tensor's type.
        pub fn to_store(dtype: inference::DType) -> store::DType {
            match dtype { $(inference::DType::$name => store::DType::$name,)* }
        }

        /// The protocol's name of a stored type.
        pub fn to_proto(dtype: store::DType) -> v1::DataType {
            match dtype { $(store::DType::$name => v1::DataType::$proto,)* }
        }

        /// The stored type of a protocol's number, if there is one.
        pub fn from_proto(dtype: i32) -> Option<store::DType> {
            match v1::DataType::try_from(dtype).ok()? {
                v1::DataType::Unspecified => None,
                $(v1::DataType::$proto => Some(store::DType::$name),)*
            }
        }
    };
}

dtypes!(
    Bool = Bool,
    U8 = U8,
    I8 = I8,
    U16 = U16,
    I16 = I16,
    U32 = U32,
    I32 = I32,
    U64 = U64,
    I64 = I64,
    F16 = F16,
    BF16 = Bf16,
    F32 = F32,
    F64 = F64
);

/// A model's tensor as a field keeps it.
pub fn value_of(tensor: &Tensor) -> Value {
    Value::Tensor {
        dtype: to_store(tensor.dtype),
        shape: tensor.shape.iter().map(|axis| *axis as u64).collect(),
        data: tensor.data.clone(),
    }
}
